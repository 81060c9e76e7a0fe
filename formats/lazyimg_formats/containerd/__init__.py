"""What containerd writes as text: the filters of its List calls, and labels of snapshots."""
