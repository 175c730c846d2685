// Package reload tells when a file that was read has other content: a
// certificate that was renewed, a secret that was rotated.
//
// # Why
//
// What is watched are the folders that a file is found by, not the file. An
// editor and certbot put another file in its place, and of a mounted Kubernetes
// secret not even that: the file is a link through ..data, which is a link
// itself, and only ..data is replaced. So each folder on the way is watched, for
// anything, and the files are read and compared with what they had: what happens
// beside them is no change, and neither is a file that was written as it was.
//
// Reading waits a moment after the first sign of a change. Whoever writes two
// files, a certificate and its key, does not do it at once, and the half of it
// would be read. Who is told of a change must stand a half all the same: it will
// be told of the other one.
//
// There is no interval at which files are looked at. What inotify does not see,
// a file on NFS that another machine writes, is not seen here.
package reload
