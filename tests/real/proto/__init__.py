"""The messages of the CRI that the tests send; see cri.proto."""
