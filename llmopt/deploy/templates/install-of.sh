install_of() {  # what brings a program that is not here
  case $1 in
{% for tool, how in installs.items() %}
    {{ tool | sh }}) printf '%s\n' {{ how | sh }} ;;
{% endfor %}
  esac
}
