"""Redis: its keys, its scripts, the connection, and the server that is started where none is named.

Runs on Redis from 7 on and on Valkey.
"""
