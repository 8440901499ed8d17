"""Redis: connections, key names, the Lua script loader, leader election and the embedded server."""
