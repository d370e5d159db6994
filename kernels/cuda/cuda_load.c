#include "kernels/cuda/cuda_load.h"

#include <dlfcn.h>
#include <string.h>

int cuda_load(const char *file, const struct cuda_function *functions, int count, struct err *err)
{
    if (dlopen(file, RTLD_NOW | RTLD_GLOBAL) == NULL)
        return err_set(err, "cannot load %s: %s", file, dlerror());
    for (int i = 0; i < count; i++) {
        void *found = dlsym(RTLD_DEFAULT, functions[i].name);
        if (found == NULL)
            return err_set(err, "%s has no %s", file, functions[i].name);
        memcpy(functions[i].pointer, &found, sizeof found);
    }
    return 0;
}
