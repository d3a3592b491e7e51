"""Statistics in stores that cannot add: each process writes what it counted, readers add it up.

::

    stats/part-5e1d…               what one process counted for a while
    stats/part-5e1d….end           that it is not written again
    stats/fold-0000000042-9c2f…    what parts that ended came to, and which those are

**A part** has one writer, which replaces it whole, at most once in an interval and for an hour
at most; then it begins another. So a part is over when its writer says so, or was not heard of
for two hours by the store's clock (it was killed).

**Folding** reads the last fold and the parts that are over, and writes a new fold, which names
those parts. Only then is it made the *head*, by compare-and-swap. Nobody counts a part that the
head names. So a part is counted once at every moment: by itself until the swap, by the head from
then on; who dies on the way leaves files that count for nothing, and of two who fold at once one
loses the swap and has done nothing. Named parts are removed later, when nobody reads by an
older head any more.

**Reading** takes the parts first and the head after them: a part that went meanwhile is in it.

A store without pointers (fsspec) has no swap: there the fold with the highest number is the head,
and of several the first by name. Of two who fold at once the loser has removed nothing yet, as
named parts stay for ten minutes; who took a minute to get as far as writing gives up.

**Beginning anew** is a fold as well: it names all parts that are over, and takes away what the
others hold now, as their writers will write that again.

What cannot be read (half written, of a later version, damaged) is left out, and the log says so.
"""

from __future__ import annotations

from offload.stores.snapshots.tallies import SnapshotTallies

__all__ = ("SnapshotTallies",)
