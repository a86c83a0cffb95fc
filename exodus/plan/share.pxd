# Types for the compiled form of share.py; nothing here changes what it does.
cpdef bint in_share(bytes key, Py_ssize_t below, Py_ssize_t salt)
