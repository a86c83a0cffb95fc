# Types for the compiled form of table.py; nothing here changes what it does.
cimport cython

cdef class Command:
    cdef public bytes name
    cdef public bint write, known, plain, renamed, script, acts_on_error, hides_keys
    cdef public Py_ssize_t first, last, step
    cdef public object role, movable
    cdef public dict subcommands

    cpdef keys(self, list args)
    cpdef bint refused(self, bytes error)

cdef class CommandTable:
    cdef dict _by_name, _spelled
    cdef public dict kept
    cdef public Command unknown

    @cython.locals(command=Command)
    cpdef Command of(self, list args)
    @cython.locals(command=Command)
    cpdef Command find(self, bytes name)
