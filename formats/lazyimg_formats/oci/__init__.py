"""What the Open Container Initiative's specifications, and Docker before them, write as text.

`digest` and `platform` are the small values, `reference` is what users type, `documents` are the
JSON documents of an image: index -> manifest -> config and layers. Text and bytes go in, frozen
values come out; a document that is rewritten keeps the fields that this package does not know.
Nothing here reads a file, asks a registry or knows on which machine it runs.

Sources: image-spec (descriptor.md, manifest.md, image-index.md, config.md), distribution-spec,
Docker's image manifest version 2, schema 2; the reference grammar of the distribution project.
"""
