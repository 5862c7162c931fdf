"""What every measurement needs and none is about: memory, disk, fingerprints, provenance, a resumable run's folder."""
