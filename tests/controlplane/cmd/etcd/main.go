// Command etcd is etcd's own server. Its main package lives in a module that
// pulls in etcd's whole test suite; this one needs only the server module.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
