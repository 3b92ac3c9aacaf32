"""What a browser or another program asks: a page to look at films, and scores over HTTP."""
