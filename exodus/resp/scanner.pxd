# Types for the compiled form of scanner.py; nothing here changes what it does.
cimport cython

cdef int _STAR, _DOLLAR, _LINE, _BULK, _ELEMENTS, _PAIRS, _ATTRIBUTE
cdef Py_ssize_t _ARGS_MAX, _BULK_BYTES_MAX, _DIGITS_MAX, _NO_NUMBER, _FIRST_BYTES_MAX
cdef Py_ssize_t _SHORT_LINE_BYTES, _ARG_BYTES_MAX, _FRAME_BYTES_MAX, _SHORT_BYTES
cdef bytes _NOTHING, _SHAPES

@cython.no_gc
@cython.freelist(64)
cdef class Request:
    cdef public list args
    cdef public Py_ssize_t size
    cdef public bint skipped, odd

@cython.locals(made=Request)
cdef Request _request(list args, Py_ssize_t size, bint skipped, bint odd)

@cython.locals(digits=bytes)
cpdef Py_ssize_t _number(bytes raw) except? -1

cpdef Py_ssize_t _line_end(bytes data, bytes mark, Py_ssize_t at) except? -2

cdef class RequestScanner:
    cdef public list args
    cdef public object broken
    cdef public Py_ssize_t announced
    cdef dict _kept
    cdef bytes _tail
    cdef Py_ssize_t _before, _want, _skip, _retained
    cdef bint _skipped, _odd

    @cython.locals(found=list, args=list, view="const unsigned char*", at=Py_ssize_t,
                   end=Py_ssize_t, start=Py_ssize_t, want=Py_ssize_t, step=Py_ssize_t,
                   eol=Py_ssize_t, stop=Py_ssize_t, count=Py_ssize_t, size=Py_ssize_t,
                   begin=Py_ssize_t)
    cpdef list feed(self, bytes data)

@cython.locals(number=Py_ssize_t, index=Py_ssize_t)
cpdef Py_ssize_t _length(bytes data, Py_ssize_t at, Py_ssize_t eol) except? -1

@cython.freelist(64)
cdef class Reply:
    cdef public int kind
    cdef public bytes head
    cdef public Py_ssize_t size
    cdef public bytes first

@cython.locals(made=Reply)
cdef Reply _reply(int kind, bytes head, Py_ssize_t size, bytes first)

cdef class ReplyScanner:
    cdef public object broken
    cdef bytes _tail, _head, _first
    cdef Py_ssize_t _before, _depth, _skip
    cdef int _kind
    cdef bint _aggregate

    @cython.locals(found=list, view="const unsigned char*", at=Py_ssize_t, end=Py_ssize_t,
                   start=Py_ssize_t, depth=Py_ssize_t, step=Py_ssize_t, eol=Py_ssize_t,
                   stop=Py_ssize_t, kind=int, shape=int, line=Py_ssize_t, size=Py_ssize_t,
                   count=Py_ssize_t)
    cpdef list feed(self, bytes data)
