# Types for the compiled form of transaction.py; they do not change its behaviour.
cimport cython

@cython.final
cdef class Transaction:
    cdef public list effects, raw, unseen, texts, commands, misfits
    cdef public Py_ssize_t raw_bytes, count
    cdef public bytes first_key
    cdef public bint writes, whole, undescribed
    cdef public object unreadable, slot
