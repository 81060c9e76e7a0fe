"""The images of this node: from a reference to something that can be mounted.

reference -> manifest -> the index of each layer -> bootstrap and device tables -> served by name.

Steps: `service` resolves a reference (registry, or what is recorded when the registry is away), has
`proofs` show that this user may read the layers, `locating` say where the index of each is, and
`fetching` bring it here, and runs `build` in a short-lived child: parsing and merging cost memory
and hold the interpreter's lock, and the daemon should pay neither. `upper` and `merge` are the pure
part of it. A Nydus image has one index for all its layers: `nydus_making` fetches it, and the same
child builds it (`nydus`). `catalog` answers the transport: a name is a bootstrap, whose bytes are
in a local file, or a device, which the fill engine fills.

A device is filled from repositories of images that are mounted (`readers`): what another user may
read is not fetched with this user's credentials, nor the other way round. Credentials are in memory
only: `shown` has those of users, `given` those that came with pulls of containerd.

A layer without an index is read whole at its first use (`streaming`): index and device are made in
one pass, by a child (`indexing`), the device where the cache takes it from (`ports.Staging`).
`sharing` pushes such indexes, if that is wanted.

`completion` makes images local in the background, and has `check`, another short-lived child, find
out whether their layers are what they say; the library keeps what was found.

`mounts` puts images on users' directories (`mounted`, `scratch`), over the one kernel mount that
`kernel_mounts` makes of each; `recovery` begins with what the process before this one left. The
kernel comes by an image in one of two ways (`ports.Way`): through its cache, in which the transport
makes files present (`cache_mounts`), or from files that the transport names (`file_mounts`).

On disk, below ROOT; every file is named by its content, written aside, synced and renamed:
    content/<sha256>        configs and layers' indexes, as they were fetched
    bootstraps/<fsid>       EROFS images; the name is the file's sha256
    tables/<sha256>         device tables, named by the digest of the index they were made from
    domain                  the EROFS domain in use, once it was not the first one
    library.sqlite          records (`library`): names, images, layers, sources of devices, mounts,
                            what was found of layers
    library.reserve         room for a start when the disk is full
    calls                   locked by each child that mounts, for as long as it lives
    mnt/<fsid>              the one kernel mount of an image; users' directories are bind mounts
    scratch/<id>            upper and work directories of read-write mounts

Everything but the records can be made again from a registry. Nothing here is changed in place.
"""
