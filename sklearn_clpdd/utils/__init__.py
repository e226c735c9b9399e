"""What the other packages share: ridge regression, devices, fingerprints, pictures, and the private parts of other libraries."""
