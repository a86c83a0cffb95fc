# Types for the compiled form of share.py; nothing here changes what it does.
cimport cython

cdef bint _AS_SOURCE
cdef long long _ALL
cdef bytes _COLUMN_0, _COLUMN_1, _COLUMN_2, _COLUMN_3

@cython.locals(view="const unsigned char*", zero="const unsigned char*", one="const unsigned char*",
               two="const unsigned char*", three="const unsigned char*", size=Py_ssize_t,
               at=Py_ssize_t, value="long long", low="long long", high="long long",
               index="unsigned int")
cpdef bint in_share(bytes key, Py_ssize_t below, Py_ssize_t salt)
