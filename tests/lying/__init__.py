"""A gRPC server that lies: any bytes, for any call, and every lie about every field.

`server` answers, `honest` says what is true, `lies` changes one field of that at a time.
"""
