// Command calico-typha stands in for Calico's Typha in the tests of loadtest: Go's own encoding/gob, the same order of
// messages. Written from the description of the protocol; it follows no datastore, but is told on standard input what
// to serve.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "fixtures" {
		fixtures()
		return
	}
	compression := flag.String("compression", "snappy", "snappy, zstd or none; plain: without restarting decoders at all")
	listen := flag.String("listen", "127.0.0.1:0", "address")
	flag.Parse()
	server, err := newServer(*listen, *compression)
	check(err)
	fmt.Println(server.listener.Addr())
	go server.accept()
	check(server.follow(os.Stdin))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
