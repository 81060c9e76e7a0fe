"""The messages of containerd's snapshots service; see snapshots.proto."""
