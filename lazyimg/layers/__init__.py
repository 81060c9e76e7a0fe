"""A layer's index: where it is, how it is fetched, and what it says.

`locate` reads the manifest's descriptor of a layer: which format the layer is in, and where its
index lies. `fetch` gets the index from the blob and checks its digest: the manifest commits to it
by digest, so it is as trustworthy as the manifest. `parse` turns its bytes into a LayerIndex. Each
format adds a line to each. `decompress` gives the tar that is in a blob, whatever the format.
"""
