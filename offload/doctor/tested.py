"""The newest versions of dependencies that offload was tested with.

Written by `make constraints`.
"""

TESTED = {
    "blake3": "1.0.11",
    "boto3": "1.44.8",
    "botocore": "1.44.8",
    "celery": "5.7.0",
    "cloudpickle": "3.1.3",
    "cryptography": "50.0.2",
    "fsspec": "2026.9.0",
    "jinja2": "3.1.6",
    "kombu": "5.7.0",
    "markupsafe": "3.0.4",
    "numpy": "2.5.5",
    "opentelemetry-api": "1.45.2",
    "orjson": "3.13.0",
    "packaging": "26.3",
    "pandas": "3.1.1",
    "pillow": "13.0.0",
    "polars": "2.1.0",
    "prometheus-client": "0.26.0",
    "pyarrow": "26.0.1",
    "pydantic": "2.14.4",
    "redis": "8.1.0",
    "rich": "15.0.0",
    "scipy": "1.18.1",
    "starlette": "1.10.0",
    "tqdm": "4.70.1",
    "uvicorn": "0.54.0",
    "xarray": "2026.9.0",
    "zstandard": "0.25.0",
}
