"""Files that arrive when they are opened: a FUSE file system of the objects that a store does not have (yet).

    your function ──open──▶ overlay ──▶ names (EROFS) ──▶ the store's objects, if it is there
                                                     └──▶ this file system, if it is not ──▶ where it is fetched from

It lies under the overlays of containers, as the last place that they look into. So the kernel asks here once for an
object that is missing, reads it past this process from then on, and whoever starts later finds it in the store.
"""
