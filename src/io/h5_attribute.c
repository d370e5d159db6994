/* Attributes of HDF5 objects: the second half of h5.h. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "io/h5.h"

enum {
    MOST_BYTES = 1 << 28
}; /* of one attribute; a larger one is taken for damage */

bool h5_has(hid_t object, const char *name)
{
    bool has = H5Aexists(object, name) > 0;
    H5Eclear2(H5E_DEFAULT);
    return has;
}

/* Opens an attribute of a class; its type and how many elements it has. */
static hid_t open_attribute(hid_t object, const char *name, H5T_class_t class, const char *class_name, hid_t *type,
                            int64_t *count, struct err *err)
{
    if (!h5_has(object, name))
        return err_set(err, "attribute '%s' is missing", name);
    hid_t attribute = H5Aopen(object, name, H5P_DEFAULT);
    hid_t space = attribute < 0 ? -1 : H5Aget_space(attribute);
    *type = attribute < 0 ? -1 : H5Aget_type(attribute);
    *count = space < 0 ? -1 : H5Sget_simple_extent_npoints(space);
    int result = 0;
    if (space < 0 || *type < 0 || *count < 0)
        result = h5_error(err, "attribute '%s' cannot be opened", name);
    else if (H5Tget_class(*type) != class)
        result = err_set(err, "attribute '%s' is not %s", name, class_name);
    else if (*count > MOST_BYTES / 8)
        result = err_set(err, "attribute '%s' claims %lld elements", name, (long long)*count);
    if (space >= 0)
        H5Sclose(space);
    if (result == 0)
        return attribute;
    if (*type >= 0)
        H5Tclose(*type);
    if (attribute >= 0)
        H5Aclose(attribute);
    return -1;
}

static int get_integer(hid_t object, const char *name, hid_t as, void *value, struct err *err)
{
    hid_t type;
    int64_t count;
    hid_t attribute = open_attribute(object, name, H5T_INTEGER, "an integer", &type, &count, err);
    if (attribute < 0)
        return -1;
    int result = 0;
    if (count != 1)
        result = err_set(err, "attribute '%s' has %lld values, not one", name, (long long)count);
    else if (H5Aread(attribute, as, value) < 0)
        result = h5_error(err, "attribute '%s' cannot be read", name);
    H5Tclose(type);
    H5Aclose(attribute);
    return result;
}

int h5_get_int64(hid_t object, const char *name, int64_t *value, struct err *err)
{
    return get_integer(object, name, H5T_NATIVE_INT64, value, err);
}

int h5_get_uint64(hid_t object, const char *name, uint64_t *value, struct err *err)
{
    return get_integer(object, name, H5T_NATIVE_UINT64, value, err);
}

int h5_get_doubles(hid_t object, const char *name, double **values, int64_t *count, struct err *err)
{
    hid_t type;
    hid_t attribute = open_attribute(object, name, H5T_FLOAT, "floating-point numbers", &type, count, err);
    if (attribute < 0)
        return -1;
    *values = allocate((size_t)*count, sizeof **values);
    int result = 0;
    if (*count > 0 && H5Aread(attribute, H5T_NATIVE_DOUBLE, *values) < 0) {
        result = h5_error(err, "attribute '%s' cannot be read", name);
        free(*values);
        *values = NULL;
    }
    H5Tclose(type);
    H5Aclose(attribute);
    return result;
}

static int read_variable(hid_t attribute, hid_t type, char **text)
{
    char *string = NULL;
    if (H5Aread(attribute, type, &string) < 0)
        return -1;
    *text = copy_text(string ? string : "");
    if (string)
        H5free_memory(string);
    return 0;
}

static int read_fixed(hid_t attribute, hid_t type, char **text)
{
    size_t bytes = H5Tget_size(type);
    if (bytes > MOST_BYTES)
        return -1;
    *text = allocate(bytes + 1, 1); /* closed by a zero whatever the padding */
    if (H5Aread(attribute, type, *text) < 0) {
        free(*text);
        *text = NULL;
        return -1;
    }
    if (H5Tget_strpad(type) == H5T_STR_SPACEPAD)
        while (bytes > 0 && (*text)[bytes - 1] == ' ')
            (*text)[--bytes] = '\0';
    return 0;
}

int h5_get_text(hid_t object, const char *name, char **text, struct err *err)
{
    hid_t type;
    int64_t count;
    hid_t attribute = open_attribute(object, name, H5T_STRING, "a string", &type, &count, err);
    if (attribute < 0)
        return -1;
    *text = NULL;
    int result = 0;
    if (count != 1)
        result = err_set(err, "attribute '%s' has %lld values, not one", name, (long long)count);
    else if ((H5Tis_variable_str(type) > 0 ? read_variable : read_fixed)(attribute, type, text) < 0)
        result = h5_error(err, "attribute '%s' cannot be read", name);
    H5Tclose(type);
    H5Aclose(attribute);
    return result;
}

/* count < 0: one value without axes */
static int put(hid_t object, const char *name, hid_t type, int64_t count, const void *values, struct err *err)
{
    hsize_t extent = (hsize_t)count;
    hid_t space = count < 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(1, &extent, NULL);
    hid_t attribute = space < 0 ? -1 : H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    int result = 0;
    if (attribute < 0 || (count != 0 && H5Awrite(attribute, type, values) < 0))
        result = h5_error(err, "attribute '%s' cannot be written", name);
    if (attribute >= 0)
        H5Aclose(attribute);
    if (space >= 0)
        H5Sclose(space);
    return result;
}

int h5_put_int64(hid_t object, const char *name, int64_t value, struct err *err)
{
    return put(object, name, H5T_NATIVE_INT64, -1, &value, err);
}

int h5_put_uint64(hid_t object, const char *name, uint64_t value, struct err *err)
{
    return put(object, name, H5T_NATIVE_UINT64, -1, &value, err);
}

int h5_put_doubles(hid_t object, const char *name, const double *values, int64_t count, struct err *err)
{
    return put(object, name, H5T_NATIVE_DOUBLE, count, values, err);
}

int h5_put_text(hid_t object, const char *name, const char *text, struct err *err)
{
    /* variable length: a string for every reader, and without limit (it lies outside the object's header) */
    hid_t type = H5Tcopy(H5T_C_S1);
    if (type < 0 || H5Tset_size(type, H5T_VARIABLE) < 0 || H5Tset_cset(type, H5T_CSET_UTF8) < 0)
        fatal("HDF5 has no memory for a type");
    int result = put(object, name, type, -1, &text, err);
    H5Tclose(type);
    return result;
}

int h5_put_format(hid_t file, const char *format, int64_t version, struct err *err)
{
    return h5_put_text(file, "format", format, err) < 0 ? -1 : h5_put_int64(file, "version", version, err);
}

int h5_check_format(hid_t file, const char *format, int64_t version, struct err *err)
{
    char *found = NULL;
    int64_t found_version;
    if (h5_get_text(file, "format", &found, err) < 0)
        return err_prefix(err, "is not a %s file", format);
    int result = 0;
    if (strcmp(found, format) != 0)
        result = err_set(err, "attribute 'format' is '%.64s', not '%s'", found, format);
    else if (h5_get_int64(file, "version", &found_version, err) < 0)
        result = -1;
    else if (found_version != version)
        result = err_set(err, "is version %lld of %s; this program reads version %lld", (long long)found_version,
                         format, (long long)version);
    free(found);
    return result;
}
