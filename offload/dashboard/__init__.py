"""The web dashboard: ``celery offload dashboard``, or mounted in an ASGI app.

Needs the extra ``dashboard``.
"""

from offload.dashboard.app import dashboard
from offload.dashboard.auth import Basic, Token

__all__ = ("Basic", "Token", "dashboard")
