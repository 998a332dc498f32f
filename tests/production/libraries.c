/* SPDX-License-Identifier: MIT */
/* HDF5 and FFTW as a program uses them, through their libraries in C, which every Fortran interface to them calls. */
#include <fftw3.h>
#include <hdf5.h>
#include <math.h>

/* The number, written to a file and read again; 0 when that fails. */
double hdf5_returns(const char *name, double number)
{
    double found = 0;
    hid_t file = H5Fcreate(name, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), space = H5Screate(H5S_SCALAR);
    hid_t data = H5Dcreate2(file, "v", H5T_NATIVE_DOUBLE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    herr_t failed = H5Dwrite(data, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, &number);
    H5Dclose(data);
    H5Sclose(space);
    H5Fclose(file);
    file = H5Fopen(name, H5F_ACC_RDONLY, H5P_DEFAULT);
    data = H5Dopen2(file, "v", H5P_DEFAULT);
    if (failed < 0 || H5Dread(data, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, &found) < 0)
        found = 0;
    H5Dclose(data);
    H5Fclose(file);
    return found;
}

/* Largest difference of the transform of 1, -1, 1, ... from what it is: 8 in the last wave, 0 in the others. */
double fftw_differs(void)
{
    double line[8], difference = 0;
    fftw_complex waves[5];
    fftw_plan plan = fftw_plan_dft_r2c_1d(8, line, waves, FFTW_ESTIMATE);
    for (int i = 0; i < 8; i++)
        line[i] = i % 2 ? -1 : 1;
    fftw_execute(plan);
    fftw_destroy_plan(plan);
    for (int i = 0; i < 5; i++)
        difference = fmax(difference, hypot(waves[i][0] - (i == 4 ? 8 : 0), waves[i][1]));
    return difference;
}
