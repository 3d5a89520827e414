"""One rewrite per file; `frontend.pipeline` lists them in order."""
