"""`cogen-fast app`: a page to paint a mask and watch completions. It needs the extra `app`."""
