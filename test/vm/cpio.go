// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// archive writes a cpio archive in the "newc" form, which the kernel unpacks as
// its first root file system (Documentation/driver-api/early-userspace/
// buffer-format.rst). Parents are added before what is in them. All files
// belong to root. Archives may be written one after the other into one file.
type archive struct {
	w     io.Writer
	n     int64
	inode int
	dirs  map[string]bool
	err   error
}

func newArchive(w io.Writer) *archive { return &archive{w: w, dirs: map[string]bool{}} }

// Write counts and remembers the first error, so that entries need no checks.
func (a *archive) Write(data []byte) (int, error) {
	if a.err != nil {
		return 0, a.err
	}
	n, err := a.w.Write(data)
	a.n += int64(n)
	a.err = err
	return n, err
}

func (a *archive) pad() {
	if rest := a.n % 4; rest != 0 {
		_, _ = a.Write(make([]byte, 4-rest))
	}
}

// entry begins a file at an absolute guest path. size bytes of content follow.
func (a *archive) entry(name string, mode uint32, size int64) {
	name = path.Clean(name)[1:]
	a.inode++
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
}

// dir adds a directory and its parents, once.
func (a *archive) dir(name string) {
	name = path.Clean(name)
	if name == "/" || a.dirs[name] {
		return
	}
	a.dir(path.Dir(name))
	a.dirs[name] = true
	a.entry(name, 0o040755, 0)
}

// bytes adds an ordinary file.
func (a *archive) bytes(name string, permissions uint32, data []byte) {
	a.dir(path.Dir(name))
	a.entry(name, 0o100000|permissions, int64(len(data)))
	_, _ = a.Write(data)
	a.pad()
}

// link adds a symbolic link.
func (a *archive) link(name, target string) {
	a.dir(path.Dir(name))
	a.entry(name, 0o120777, int64(len(target)))
	_, _ = io.WriteString(a, target)
	a.pad()
}

// file adds a copy of a file of the host.
func (a *archive) file(name string, permissions uint32, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	a.dir(path.Dir(name))
	a.entry(name, 0o100000|permissions, info.Size())
	if _, err := io.CopyN(a, in, info.Size()); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	a.pad()
	return nil
}

// tree adds the ordinary files and symbolic links below a directory of the host.
func (a *archive) tree(name, from string) error {
	return filepath.WalkDir(from, func(at string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, at)
		if err != nil {
			return err
		}
		switch to := path.Join(name, rel); {
		case entry.Type().IsRegular():
			return a.file(to, 0o644, at)
		case entry.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(at)
			if err != nil {
				return err
			}
			a.link(to, target)
		}
		return nil
	})
}

// close ends the archive and returns the first error of any Write.
func (a *archive) close() error {
	a.entry("/TRAILER!!!", 0, 0)
	for a.err == nil && a.n%512 != 0 {
		a.pad()
		_, _ = a.Write(make([]byte, 4))
	}
	return a.err
}
