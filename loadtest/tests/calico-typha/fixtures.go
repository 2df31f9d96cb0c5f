package main

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"time"
)

// What a stream holds, and what a reader is to make of it: numbers, text, lists and objects as in JSON; bytes in base64;
// an interface as {"type", "value"}; fields with a zero value left out.
type fixture struct {
	Name   string        `json:"name"`
	Stream string        `json:"stream"`
	Values []interface{} `json:"values"`
}

type object = map[string]interface{}
type list = []interface{}

type inner struct {
	Text   string
	Number int
}

type sample struct {
	Flag   bool
	Small  int8
	Whole  int64
	Number uint32
	Float  float64
	Text   string
	Raw    []byte
	List   []string
	Nested []inner
	One    inner
	Far    *inner
	Array  [3]uint16
	Table  map[string]int
	Zero   string
	Last   bool
}

type numbers []int

type choice struct{ What interface{} }

type skipping struct {
	A, B, C int
	D       string
}

type tree struct {
	Name     string
	Children []tree
}

func init() {
	gob.RegisterName("fixture.inner", inner{})
	gob.RegisterName("fixture.numbers", numbers{})
}

const syncproto = "github.com/projectcalico/typha/pkg/syncproto."

func fixtures() {
	at := time.Unix(1_700_000_000, 5).UTC()
	stamp, err := at.GobEncode()
	check(err)
	encoded := base64.StdEncoding.EncodeToString
	message := func(name string, value object) object {
		return object{"Message": object{"type": syncproto + name, "value": value}}
	}
	all := []fixture{
		stream("unsigned", []interface{}{uint(0), uint(127), uint(128), uint(255), uint(256), uint(1 << 32), uint64(1<<64 - 1)},
			0, 127, 128, 255, 256, 1<<32, uint64(1<<64-1)),
		stream("signed", []interface{}{0, 1, -1, 63, -64, 64, -65, int64(math.MaxInt64), int64(math.MinInt64)},
			0, 1, -1, 63, -64, 64, -65, int64(math.MaxInt64), int64(math.MinInt64)),
		stream("floats", []interface{}{0.5, -17.25, 1e300}, 0.5, -17.25, 1e300),
		stream("text", []interface{}{"", "a", "grün", string(bytes.Repeat([]byte("x"), 300))},
			"", "a", "grün", string(bytes.Repeat([]byte("x"), 300))),
		stream("bool, bytes and complex", []interface{}{true, false, []byte{1, 2, 255}, complex(1.5, -2.25)},
			true, false, encoded([]byte{1, 2, 255}), list{1.5, -2.25}),
		stream("lists", []interface{}{[]int{3, -3}, []string{"a", ""}, [][]string{{"x"}, {"y", "z"}}, [2]bool{true, false}, []string{}},
			list{3, -3}, list{"a", ""}, list{list{"x"}, list{"y", "z"}}, list{true, false}, list{}),
		stream("maps", []interface{}{map[string]int{"a": 1}, map[int]string{-7: "x"}, map[string][]string{"k": {"v", "w"}}},
			object{"a": 1}, object{"-7": "x"}, object{"k": list{"v", "w"}}),
		stream("a structure with one of each", []interface{}{sample{
			Flag: true, Small: -3, Whole: 1 << 40, Number: 70_000, Float: 2.5, Text: "t", Raw: []byte("raw"), List: []string{"l"},
			Nested: []inner{{"n", 1}, {"", 2}, {}}, One: inner{"one", 0}, Far: &inner{"far", -1}, Array: [3]uint16{1, 0, 65535},
			Table: map[string]int{"k": -1}, Last: true,
		}}, object{
			"Flag": true, "Small": -3, "Whole": 1 << 40, "Number": 70_000, "Float": 2.5, "Text": "t", "Raw": encoded([]byte("raw")),
			"List": list{"l"}, "Nested": list{object{"Text": "n", "Number": 1}, object{"Number": 2}, object{}},
			"One": object{"Text": "one"}, "Far": object{"Text": "far", "Number": -1}, "Array": list{1, 0, 65535},
			"Table": object{"k": -1}, "Last": true,
		}),
		stream("fields that are left out", []interface{}{skipping{}, skipping{A: 1}, skipping{C: 3}, skipping{D: "d"}, skipping{B: 2, D: "d"}},
			object{}, object{"A": 1}, object{"C": 3}, object{"D": "d"}, object{"B": 2, "D": "d"}),
		stream("a type within itself", []interface{}{tree{"root", []tree{{"a", nil}, {"b", []tree{{"c", nil}}}}}},
			object{"Name": "root", "Children": list{object{"Name": "a"}, object{"Name": "b", "Children": list{object{"Name": "c"}}}}}),
		stream("interfaces", []interface{}{
			choice{"text"}, choice{17}, choice{inner{"t", 5}}, choice{inner{"again", 6}}, choice{numbers{1, 2}}, choice{nil}, choice{true},
		},
			object{"What": object{"type": "string", "value": "text"}}, object{"What": object{"type": "int", "value": 17}},
			object{"What": object{"type": "fixture.inner", "value": object{"Text": "t", "Number": 5}}},
			object{"What": object{"type": "fixture.inner", "value": object{"Text": "again", "Number": 6}}},
			object{"What": object{"type": "fixture.numbers", "value": list{1, 2}}}, object{}, object{"What": object{"type": "bool", "value": true}}),
		stream("the messages of a server", []interface{}{
			Envelope{MsgServerHello{Version: "v3.32.0", SyncerType: "felix", SupportsNodeResourceUpdates: true, ServerConnID: 7}},
			Envelope{MsgDecoderRestart{Message: "snapshot", CompressionAlgorithm: "snappy"}},
			Envelope{MsgKVs{[]SerializedUpdate{
				{Key: "/calico/v1/Ready", Value: []byte("true"), Revision: "12", UpdateType: kvNew},
				{Key: "/calico/v1/config/A", Revision: uint64(13), V3ResourceVersion: "13/14", TTL: time.Second, UpdateType: kvDeleted},
			}}},
			Envelope{MsgSyncStatus{inSync}}, Envelope{MsgSyncStatus{resyncInProgress}}, Envelope{MsgSyncStatus{}},
			Envelope{MsgPing{at}}, Envelope{MsgKVs{}}, Envelope{MsgACK{}},
		},
			message("MsgServerHello", object{"Version": "v3.32.0", "SyncerType": "felix", "SupportsNodeResourceUpdates": true, "ServerConnID": 7}),
			message("MsgDecoderRestart", object{"Message": "snapshot", "CompressionAlgorithm": "snappy"}),
			message("MsgKVs", object{"KVs": list{
				object{"Key": "/calico/v1/Ready", "Value": encoded([]byte("true")), "Revision": object{"type": "string", "value": "12"}, "UpdateType": 1},
				object{"Key": "/calico/v1/config/A", "Revision": object{"type": "uint64", "value": 13}, "V3ResourceVersion": "13/14",
					"TTL": int64(time.Second), "UpdateType": 3},
			}}),
			message("MsgSyncStatus", object{"SyncStatus": 2}), message("MsgSyncStatus", object{"SyncStatus": 1}), message("MsgSyncStatus", object{}),
			message("MsgPing", object{"Timestamp": encoded(stamp)}), message("MsgKVs", object{}), message("MsgACK", object{})),
	}
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	out.SetIndent("", " ")
	check(out.Encode(all))
}

// One stream with all values in it.
func stream(name string, written []interface{}, read ...interface{}) fixture {
	if len(written) != len(read) {
		panic(fmt.Sprintf("%s: %d values are written, %d are to be read", name, len(written), len(read)))
	}
	var out bytes.Buffer
	encoder := gob.NewEncoder(&out)
	for _, value := range written {
		check(encoder.Encode(value))
	}
	return fixture{name, base64.StdEncoding.EncodeToString(out.Bytes()), read}
}
