"""Setting up what lies around lazyimg: containerd's configuration, a unit for systemd.

containerd calls lazyimg's snapshotter when its configuration has a few tables (`settings`). They
are put into the file that is there: comments, order and everything else stay.

    settings: what must be there --> edit: the file's new text --> change: the file itself
    program: the containerd of this machine: its version, and what it makes of a file

Files: `settings` and `edit` are pure. `change` works on the file, `program` runs containerd,
`findings` (containerd) and `kubelet` (the image service) say for `lazyimg doctor` what is missing,
`unit` writes systemd's unit.

Rules:
  - What was edited, read as TOML, is what was there and the settings, nothing else; an edit that
    cannot be proved to be so is refused.
  - containerd reads the new text, as a file aside, before it replaces the old one: the file is
    never one that containerd refuses. Then it is renamed into place, synced.
  - The file is copied once, before the first change. Undoing renames the copy back, and only if
    nobody has changed the file since.
  - Running it again changes nothing. containerd is restarted only when that is asked for.

On disk, beside config.toml:
    config.toml.before-lazyimg     the copy: the same bytes, mode and owner
    config.toml.lazyimg            SHA-256 of the copy, and of what lazyimg wrote (JSON)
"""
