# Types for the compiled form of key_slots.py; nothing here changes what it does.
cimport cython

cdef bint _COMPILED
cdef unsigned char _BRACE

@cython.locals(crc=cython.uint, part=cython.uint, byte=cython.uchar)
cpdef Py_ssize_t slot_of(bytes key)

@cython.locals(start=Py_ssize_t, end=Py_ssize_t)
cdef bytes _hashed(bytes key)

@cython.locals(found=dict, places=list, at=Py_ssize_t, key=bytes)
cpdef dict places_by_owner(list keys, list owners)

@cython.locals(
    found=dict, slots=dict, last=Py_ssize_t, slot=Py_ssize_t, places=list, groups=list, at=Py_ssize_t,
    key=bytes
)
cpdef dict groups_by_owner(list keys, list owners)

@cython.locals(found=list, left=Py_ssize_t, number=Py_ssize_t, slot=Py_ssize_t, tag=bytes)
cpdef list tags_by_slot(bytes prefix)
