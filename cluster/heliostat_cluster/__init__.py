"""Where runs live: Ray clusters, from the embedded local one upwards."""
