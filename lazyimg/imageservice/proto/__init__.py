"""Messages of the CRI's image service, as far as they are read; see `lazyimg.imageservice`."""
