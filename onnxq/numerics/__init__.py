"""Pure array arithmetic: no graph, no session."""
