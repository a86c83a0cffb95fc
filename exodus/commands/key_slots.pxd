# Types for the compiled form of key_slots.py; nothing here changes what it does.
cimport cython

@cython.locals(start=Py_ssize_t, end=Py_ssize_t, slot=Py_ssize_t)
cpdef Py_ssize_t slot_of(bytes key)

@cython.locals(found=dict, places=list, at=Py_ssize_t, key=bytes)
cpdef dict places_by_owner(list keys, list owners)
