"""Nydus images: RAFS version 6.

An image of this format has its metadata in one *bootstrap*, for all layers merged: an EROFS image
whose superblock has an extension, whose slots name blobs, and whose chunk indexes are read in
another way than the kernel does. Nothing of it reaches the kernel: `image` gives its entries, as a
layer's front end would, and a device table for each blob; the image is written anew.

    bootstrap layer (tar.gz)  --layer-->      bootstrap, and perhaps contexts of blobs
    blob                      --toc-->        where in a blob its bootstrap and context are
    bootstrap                 --bootstrap-->  superblocks, blobs, chunks, prefetch hints
    context of a blob         --context-->    how batches and stretches of gzip are decoded
    bootstrap, contexts       --image-->      ImageIndex

What is trusted: the manifest has the digest of the bootstrap layer; the bootstrap's chunk table has
the digest of each chunk's decoded bytes. So the bytes of a device are known by the bootstrap alone.
A context says only where in a blob they are: one that lies gives chunks that do not have their
digests, never other bytes.

All checks of Nydus's own reader are made, and some more: chunks do not overlap, a file's chunks
have the lengths that its size asks for, directories are a tree.

Source: nydus-rafs 0.4 (metadata/layout/v6.rs, direct_v6.rs, md_v6.rs), nydus-storage 0.7
(device.rs, meta/), nydus-utils 0.5 (compress/), nydus-builder 0.2; for what a bootstrap layer
holds, nydus-snapshotter (pkg/converter).
"""
