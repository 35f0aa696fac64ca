"""The claims of each paper, one module a chapter, stated before anything was measured."""
