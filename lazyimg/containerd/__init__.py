"""containerd is told of an image whose layers nobody downloads.

`lazyimg pull` calls containerd's own services, as its clients do, from the process of the command
line. The daemon never does: containerd calls the daemon while it answers.

    registry --> index, manifest, config --> content store
                 for each layer, lowest first:
                     Prepare, with the labels that name chain and image
                         ALREADY_EXISTS   the snapshotter has it, or shows it lazily: nothing to do
                         mounts           this layer and those above are fetched into the content
                                          store; Apply, then Commit under the chain ID
                 image record: name -> index or manifest

Files: `labels` says what containerd's collector must know (pure), `client` speaks to the services,
`pull` has the steps, `ports` tells what became of a layer. The messages (proto/) are an own
declaration of the same wire format, with what is used of it; containerd 1.6 knows all of them.

Rules:
  - Everything is made under one lease, so that the collector leaves it alone until the image's
    record refers to it. The lease is deleted at the end. After a failure or an interruption it is
    deleted too, and containerd removes what was made; who dies leaves a lease that expires.
  - The record is written last: an image that is listed is complete.
  - What is there already is used: content, snapshots, and what another pull makes meanwhile.
  - Labels of content that is there are added to, never replaced.
  - The diff ID of a layer that was unpacked must be the config's. That of a lazy one is not known.

Concurrency: layers are prepared one after another; once one must be unpacked, it and those above it
are downloaded `pull.DOWNLOADS` at a time, ahead of their turn.
"""
