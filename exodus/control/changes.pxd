# Types for the compiled form of changes.py; nothing here changes what it does.
cimport cython

@cython.locals(heads=list, parts=list, size=Py_ssize_t, db=Py_ssize_t, key=bytes)
cpdef bytes pack(keys)
