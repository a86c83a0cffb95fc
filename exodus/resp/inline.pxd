# Types for the compiled form of inline.py; nothing here changes what it does.
cimport cython

cdef bytes _SPACE, _ENDS, _HEX

@cython.locals(args=list, at=Py_ssize_t, end=Py_ssize_t, quote=int, char=int)
cpdef list split_line(bytes line)
