"""One bounded attack on a running daemon, under the load of honest callers."""
