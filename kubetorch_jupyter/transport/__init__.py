"""How a client and a pod talk: the portal's thread, the session over one WebSocket, and bulk beside it."""
