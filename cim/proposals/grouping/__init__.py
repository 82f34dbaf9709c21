"""Our own proposals: superpixels merged in several ways, ranked by how much they look like objects."""
