"""A layer's index: where it is, how it is fetched, and what it says.

`locate` reads the manifest's descriptor of a layer: which format the layer is in, and where its
index lies. `fetch` gets the index from the blob and checks its digest: the manifest commits to it
by digest, so it is as trustworthy as the manifest. `parse` turns its bytes into a LayerIndex. Each
format adds a line to each. `decompress` gives the tar that is in a blob, whatever the format.

A layer whose format has no index can be given one. `indexer` makes it in one pass over the blob:
`stretches` knows for each compression where it can be entered, and `inflate` asks libz where the
blocks of a gzip layer begin. Who has made an index so has checked the blob and its tar.
"""
