"""Types that apps register, and those of other packages that offload registers itself."""
