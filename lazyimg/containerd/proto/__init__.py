"""The messages of containerd's services; see containerd.proto."""
