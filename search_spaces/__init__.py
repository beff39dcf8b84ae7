"""Search spaces: what may be searched, one NNI model space a file. Copy one to write your own."""
