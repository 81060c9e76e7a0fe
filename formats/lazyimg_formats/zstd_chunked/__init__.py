"""zstd:chunked layers, as containers/storage has them: read and written.

A blob is an ordinary zstd-compressed tar that is cut into frames at the borders of files and of
chunks of files; then, in skippable frames, a table of contents (TOC), tar-split data and a footer:

    [header frames and file frames] [skippable: zstd(TOC, JSON)] [skippable: zstd(tar-split)]
    [skippable: footer, 64 bytes]

The TOC lists the tar's members with all that their headers say, and for each chunk of a file where
its frame lies and the sha256 of its decoded bytes. The manifest's annotations say where in the
blob the TOC lies, and the sha256 of the compressed TOC: so the manifest commits to everything.

`location` where the TOC is: annotations and footer; `entries` the TOC's JSON; `toc` a TOC to a
LayerIndex; `writer` members to a TOC, and a blob's end.

Beyond what containers/storage writes:
  - the annotations again under `containerd.io/snapshot/lazyimg.*`, because containerd passes only
    such names on to a snapshotter;
  - in a TOC entry an object `lazyimg` with what JSON, or Go's times, cannot say: names that are
    not UTF-8, times outside the years 1 to 9999. Other readers pass over it.
The tar-split data (lazyimg_formats.tar_split) is for containers/storage, which fetches parts of a
layer only where it can put the layer's tar together again, and only where TOC and tar-split data
say the same. So it is left out, and podman pulls such a layer whole, where the tar is one that
tar-split cannot hold, and where an entry needs our additions. A blob without it is as good to us.

The older dialect, which stargz-snapshotter still writes, has annotations `io.containers.*`, and a
footer of 40 bytes without tar-split data. It is read, never written.

Source: github.com/containers/storage, pkg/chunked.
"""
