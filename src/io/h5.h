/* Thin, checked wrappers over HDF5. Calls return 0 or an identifier, or -1 with a text that ends with HDF5's own
 * message; HDF5 itself prints nothing. Identifiers are closed with HDF5's own functions; an HDF5 call forgets the
 * message of the one before.
 *
 * One rank composes a file (groups, datasets, attributes) in memory and saves it; then all ranks write the elements at
 * their places in the file (h5_offset). So no metadata changes under several hands, and the disk fails in our own
 * system calls alone: HDF5 1.10 does not survive the failure of its own writing of metadata. */
#ifndef IO_H5_H
#define IO_H5_H

#include <hdf5.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/text.h"
#include "io/box.h"
#include "parallel/communicator.h"

/* Sets the text, followed by HDF5's innermost message, forgets that message and returns -1. */
int h5_error(struct err *err, const char *format, ...) PRINTF_LIKE(2, 3);

/* Opens a file to read it, on this rank alone. A file that was cut short or whose heaps are damaged is refused. */
hid_t h5_open(const char *path, struct err *err);

/* Whether the heaps of an open file, where texts of variable length lie, are sound: HDF5 1.10 believes the lengths that
 * stand there and, unlike all other metadata of our files, they carry no checksum. Part of h5_open. */
int h5_check_heaps(hid_t file, const char *path, struct err *err);

/* Begins a file in memory. Object headers and indices carry checksums; the bytes depend on the contents alone. */
hid_t h5_create(struct err *err);

/* Saves and closes a file in memory: the file on disk has the same bytes, holes where its datasets' elements belong. */
int h5_save(hid_t file, const char *path, struct err *err);

/* Opens a file to read it with MPI-IO, for independent transfers (H5P_DEFAULT). Collective over comm, as is H5Fclose:
 * all ranks get the file, or all -1 and the same text. */
hid_t h5_open_together(struct communicator *comm, const char *path, struct err *err);

/* Whether the object is there; every group on its absolute path is looked for too. */
bool h5_exists(hid_t file, const char *path);

/* Creates a contiguous dataset, its groups included, with its space in the file allocated and not filled. */
hid_t h5_create_dataset(hid_t file, const char *path, hid_t type, int axes, const int64_t *shape, struct err *err);

/* The shape of an open dataset, at most H5S_MAX_RANK axes; returns the number of axes (0: one value) or -1. Refuses
 * contiguous ones that reach beyond the end of the file. */
int h5_shape(hid_t dataset, int64_t *shape, struct err *err);

/* The class of an open dataset's elements; H5T_NO_CLASS where it cannot be told. */
H5T_class_t h5_class(hid_t dataset);

/* Where in the file the elements of a dataset lie one after another as values of `type`, in bytes; -1 where they do not
 * (other layouts and types, or nothing was ever written). */
int64_t h5_offset(hid_t dataset, hid_t type);

/* Moves a box of a dataset from or to memory, where consecutive indices of the first axis are `stride` elements of
 * `type` apart and the others are contiguous. Independent; cut it (box_piece) so that it stays below 1 GiB. */
int h5_read_box(hid_t dataset, hid_t type, const struct box *box, void *data, int64_t stride, struct err *err);
int h5_write_box(hid_t dataset, hid_t type, const struct box *box, const void *data, int64_t stride, struct err *err);

/* Attributes of an open object: integers of any width, arrays of float64 in one axis, and strings of any length (read:
 * variable or fixed length; written: variable). *text and *values are owned by the caller. The error texts do not name
 * the object. */
bool h5_has(hid_t object, const char *name);
int h5_get_int64(hid_t object, const char *name, int64_t *value, struct err *err);
int h5_get_uint64(hid_t object, const char *name, uint64_t *value, struct err *err);
int h5_get_doubles(hid_t object, const char *name, double **values, int64_t *count, struct err *err);
int h5_get_text(hid_t object, const char *name, char **text, struct err *err);
int h5_put_int64(hid_t object, const char *name, int64_t value, struct err *err);
int h5_put_uint64(hid_t object, const char *name, uint64_t value, struct err *err);
int h5_put_doubles(hid_t object, const char *name, const double *values, int64_t count, struct err *err);
int h5_put_text(hid_t object, const char *name, const char *text, struct err *err);

/* The attributes `format` and `version` by which ppmodel knows its files. */
int h5_put_format(hid_t file, const char *format, int64_t version, struct err *err);
int h5_check_format(hid_t file, const char *format, int64_t version, struct err *err);

/* The HDF5 library's version, for example "1.10.8 (parallel)". */
struct short_text h5_library(void);

#endif
