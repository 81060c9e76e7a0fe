"""eStargz layers, and zstd:chunked ones as stargz-snapshotter writes them: read.

A blob is an ordinary gzip-compressed tar that is cut into members; a member begins where the bytes
of a file, or of a chunk of a file, begin, and goes on with whatever follows them in the tar:

    [member: headers] [member: a file's bytes, padding, headers] ... [member: TOC] [member: footer]

So the bytes of a chunk are the first ones of a decoded member, or, where the blob was made with a
least size of members, some inside it (`innerOffset`). The TOC says neither where a member ends nor
how many bytes it decodes to; it has the sha256 of the chunk alone. A member ends where the next one
begins that the TOC has, at the latest.

The TOC is a tar of one file, stargz.index.json, which is JSON as zstd:chunked has it (see
`lazyimg_formats.zstd_chunked.entries`). The footer, an empty member, says in its extra field where
the TOC begins; the annotation `containerd.io/snapshot/stargz/toc.digest` of the layer has the
digest of the decoded JSON. So the manifest commits to everything but the footer, and that can only
lead to bytes with another digest.

A file .prefetch.landmark in the root says that what lies before it is wanted first, another that
nothing is. Neither is a file of the image, nor is the TOC: whoever unpacks the tar gets them,
whoever mounts it lazily does not.

The zstd:chunked layers of the same program have zstd frames where these have members, and the
TOC and a footer of 40 bytes as in the older dialect of `lazyimg_formats.zstd_chunked.location`.

`location` where the TOC is: footers and the TOC's member; `toc` a TOC to a LayerIndex.

Source: github.com/containerd/stargz-snapshotter, docs/estargz.md and estargz/.
"""
