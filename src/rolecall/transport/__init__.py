"""How this process reaches other servers over HTTP."""
